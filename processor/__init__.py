"""Turn rows of ``public.jobs`` in a Supabase project into finished work."""
